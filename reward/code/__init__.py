"""Grading of programs: the candidate in one jail, the tests in another, plain data between them.

Process U runs the candidate's program and nothing else. Process T runs the tests, which hold the expected values; it
asks U for results through this process, which carries bytes, keeps the deadline and turns the outcome into a score.
"""
