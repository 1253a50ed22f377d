"""The features of this project: the only folder that a feature author edits."""
