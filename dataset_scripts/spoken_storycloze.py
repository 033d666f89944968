"""Build clsi/spoken-storycloze: a story's beginning, its ending, and StoryCloze's own wrong one.

    python dataset_scripts/spoken_storycloze.py miniature --output-dir spoken-storycloze
    python dataset_scripts/spoken_storycloze.py paper --source cloze_test.csv --output-dir spoken-storycloze

What follows the route goes to `hf-clsi build spoken-storycloze`. The miniature's card is beside this file.
"""

from routes import CLOZE_ROUTES as ROUTES
from routes import build_by_route

if __name__ == "__main__":
    build_by_route("spoken-storycloze", ROUTES)
