"""From YAML files and command-line overrides to one checked, frozen `Config`, and back to YAML.

Reading with line numbers, `extends`, overrides, error messages with suggestions, and configurations written by earlier
versions.
"""
