package lib

owns(agent, repo) if repo in data.teams.payments.repositories[agent]
