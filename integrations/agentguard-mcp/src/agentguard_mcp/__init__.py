"""agentguard for MCP: ``agentguard_mcp.gateway`` guards servers that nobody changes.

Import the package that you need; this module imports none.
"""
