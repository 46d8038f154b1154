-- In front of verbs that a store refuses while nothing of it may change: it is being moved to
-- another one, or was. Keys: history.

open_only = true
