"""Rego, evaluated in the process, behind a gate that refuses what would be evaluated wrongly."""
