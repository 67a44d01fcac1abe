"""Commands that set a domain up and look whether it is sound."""
