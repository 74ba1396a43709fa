"""What the tests share: small models, recordings, servers, terminals and judges."""
