"""The input and output of the commands: options, files, times, and text on a terminal."""
