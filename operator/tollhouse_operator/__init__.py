"""The operator: custom resources in, snapshot Secrets and statuses out."""
