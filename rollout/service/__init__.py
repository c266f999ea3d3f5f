"""The rollout service: an HTTP interface around the live engine, as plain classes; `rollout.serve` puts them on Ray."""
