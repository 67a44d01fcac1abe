"""One call: its tool, arguments and invocation, the decision about it, and its journal."""
