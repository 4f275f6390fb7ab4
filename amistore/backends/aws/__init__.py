"""AWS itself: EBS direct APIs, EC2 and S3. Needs the extra ``amistore[aws]`` (boto3).

`connection.py` says where and who, `errors.py` what an answer means; `ebs.py`, `s3.py` and
`ec2.py` are the three services, with their parts beside them, and `backend.py` is all of them.
Nothing is imported here, so that `policies.py` runs without boto3.
"""
