"""Protocols without I/O, AWS's and NBD: values in, bytes and members out, and back.

`calls.py` is a request and an answer of HTTP, `signature.py` tells who signed one, `query.py` and
`answers.py` are the Query protocol of EC2 and STS, `ebs.py` is the EBS direct APIs', `members.py` has the
members of EC2's operations in one table, `describing.py` the filters and pages of its lists, `errors.py`
what a service says instead of an answer. The fake of `amistore.testing.aws` speaks it as a server,
`amistore.backends.aws` as a client, `amistore.ec2` in boto3's names. `nbd.py` has NBD's numbers and structs.
May import the model, errors, units, text and forks.
"""
