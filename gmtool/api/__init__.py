"""Python API: the functions of the package `gmtool`, which the commands call.

Settings are those of the commands, under the names of the options. So are the errors: subclasses of `GmtoolError`
with one line, which names the option (`--tile`) where it is about a keyword (`tile`).
"""
