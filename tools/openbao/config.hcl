# Beside -dev: no second port, which would be the first one's number and one.
disable_clustering = true
