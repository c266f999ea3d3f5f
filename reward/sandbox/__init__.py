"""Untrusted programs in a jail: one program a job, bytes in and out, nothing left behind."""
