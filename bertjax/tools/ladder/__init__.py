"""`bertjax ladder`: kinds of models, from word vectors to T5, pre-trained on one corpus and scored side by side.

`runs` makes the configurations, `text_tasks` turns a classification into text, `scores` measures a pre-trained model,
`table` and the page of `report.pages.ladder` show what `command` collects.
"""
