"""What ``batchyard doctor`` looks at: each module reads some facts, and judges them.

What judges is pure: facts in, findings out. What reads facts takes the root of the file system, so
that tests can make machines up.
"""
