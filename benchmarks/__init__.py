"""What is fast, by how much, against what; `unmask bench NAME` runs a module of this folder."""
