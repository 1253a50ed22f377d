"""
The Lua that runs inside the server: what is newer is decided where the value lies.

A compare in the client races with other writers; in the server nothing comes between the read and the write. Knows the
head of `layout.py` by its offsets (Lua counts from 1). Knows no client.
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["KEYS_PER_CALL", "PUT", "SWEEP", "Script"]

# The server does nothing else while a script runs: 50 keys are about 0.2 ms, the longest a reader is held up.
KEYS_PER_CALL: Final = 50


class Script:
    """One script and the name by which a server that has loaded it knows it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


# Times are compared in two halves: a Lua number holds 53 bits, and microseconds pass that in the year 2255.
PUT: Final = Script("""\
local expire = tonumber(ARGV[1])
local current = redis.call('MGET', unpack(KEYS))
local fresh, written, removed, skipped = {}, 0, 0, 0
for i, key in ipairs(KEYS) do
  local new, old = ARGV[i + 1], current[i]
  local ours = old and #old >= 39 and string.byte(old, 1) == 220
  local wins = true
  if ours then
    local new_generation, new_high, new_low = struct.unpack('>I8xi4I4', new, 5)
    local old_generation, old_high, old_low = struct.unpack('>I8xi4I4', old, 5)
    if new_generation ~= old_generation then
      wins = new_generation > old_generation
    elseif new_high ~= old_high then
      wins = new_high > old_high
    else
      wins = new_low >= old_low
    end
  end
  if not wins then
    skipped = skipped + 1
  else
    if string.byte(new, 39) == 194 then
      written = written + 1
    elseif old and (not ours or string.byte(old, 39) == 194) then
      removed = removed + 1
    end
    if expire > 0 then
      redis.call('SET', key, new, 'EX', expire)
    else
      fresh[#fresh + 1] = key
      fresh[#fresh + 1] = new
    end
  end
end
if #fresh > 0 then
  redis.call('MSET', unpack(fresh))
end
return {written, removed, skipped}
""")
"""KEYS[i] takes ARGV[i + 1] if that is not older; ARGV[1] is the seconds to live, 0 for ever. No key may stand twice in a call."""

SWEEP: Final = Script("""\
local generation, before = tonumber(ARGV[1]), ARGV[2]
local before_high, before_low
if before ~= '' then
  before_high, before_low = struct.unpack('>i4I4', before)
end
local current = redis.call('MGET', unpack(KEYS))
local swept = 0
for i, key in ipairs(KEYS) do
  local value = current[i]
  if value and #value >= 39 and string.byte(value, 1) == 220 then
    local its_generation, high, low = struct.unpack('>I8xi4I4', value, 5)
    if its_generation < generation
      or (before_high and (high < before_high or (high == before_high and low < before_low))) then
      redis.call('DEL', key)
      if string.byte(value, 39) == 194 then
        swept = swept + 1
      end
    end
  end
end
return swept
""")
"""Deletes each of KEYS whose generation is below ARGV[1], or whose time is before ARGV[2] (8 bytes, or nothing)."""
