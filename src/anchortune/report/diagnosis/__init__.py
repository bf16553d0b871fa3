"""Why a run did not do what it promises: rules from facts to findings; no file is read here."""
