"""Build clsi/spoken-topiccloze: a story's beginning, its ending, and that of another story.

    python dataset_scripts/spoken_topiccloze.py miniature --output-dir spoken-topiccloze
    python dataset_scripts/spoken_topiccloze.py paper --source cloze_test.csv --output-dir spoken-topiccloze

What follows the route goes to `hf-clsi build spoken-topiccloze`. The miniature's card is beside this file.
"""

from routes import CLOZE_ROUTES as ROUTES
from routes import build_by_route

if __name__ == "__main__":
    build_by_route("spoken-topiccloze", ROUTES)
