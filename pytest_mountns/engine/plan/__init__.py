"""What a sandbox is to be (the spec) and how it is built (the plan).

Pure: no system call is made here.
"""
