"""Drives OPA: from Rego to a bundle, and the bundle's Wasm in this process."""
