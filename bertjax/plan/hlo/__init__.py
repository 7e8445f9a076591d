"""Reading compiled programs (HLO text): operations, collectives and costs."""
