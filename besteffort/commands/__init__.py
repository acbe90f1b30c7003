"""What the commands do: each in the file of its name, those of a group in the file of the group.

A command is a function whose signature says its options and whose docstring its help. `options` and `shared` are what
several of them have in common; `besteffort.cli` parses what is typed and calls them.
"""
