"""Moving existing data: census, copy stream, ledger, migrator."""
