package lib.paths

below(path, root) if startswith(path, concat("", [root, "/"]))
