"""One module a subject: `run(arguments)` does the timed work once, in a process of its own, and returns what it measured."""
