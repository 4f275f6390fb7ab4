"""Folders as EC2, EBS and S3: `backend.py` has all three, `ec2.py`, `ebs.py` and `s3.py` one each."""
