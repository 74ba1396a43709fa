"""`python -m studies.tiny_claims`: runs what is missing of the study and writes its page."""

from studies.tiny_claims.run import main

if __name__ == "__main__":
    main()
