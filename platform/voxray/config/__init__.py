"""YAML ⇄ typed frozen config: reading, `_base_`, overrides, every value's source. Knows no domain."""
