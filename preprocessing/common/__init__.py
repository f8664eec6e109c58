"""What every stage shares: command lines, whole-or-nothing files, typed options, downloads, compiled code."""
