"""Studies: experiments that back a page of docs/, each a package with one command."""
