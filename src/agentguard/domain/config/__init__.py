"""The configuration: agentguard.toml, table by table."""
