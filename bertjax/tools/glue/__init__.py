"""`bertjax glue`: fine-tune an encoder on the nine tasks of GLUE (arXiv 1804.07461), each as its own runs.

tasks.py lists the tasks, official.py and data.py read them, runs.py makes the configurations of the runs, results.py
reads their scores, submission.py writes the files for the GLUE server and command.py does all of it in order.
"""
