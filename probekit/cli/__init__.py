"""The command line: one thin file a verb (parse, call, show)."""
