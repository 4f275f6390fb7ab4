"""AWS's protocols without I/O: `members.py` has the members of EC2's operations in one table.

May import the model, errors, units, text and forks.
"""
