"""Commands about agents: who they are, their delegations and tokens, the freeze."""
