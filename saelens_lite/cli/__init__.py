"""The command line: one file a command with its configuration, and what the commands share.

commands         the list of commands, and `main`, which runs one
error_line       what went wrong, in one line
flags            a command's configuration from what was typed
places           what each command takes by place
grouped_help     the help of a command by what its flags are for
shared           models by name, and what to type next
demo             the whole way on the embedded model
harvest          text into a store
add_hook_points  further hook points for a store
verify           a store checked and mended
train            an SAE, a grid of them, or one from a stream
train_relative   a relative of the SAE
transcoders      a transcoder trained, by `train`
refit            a relu SAE fitted again without its penalty
evaluate         an SAE's scores beside their controls
analyze          the index of an SAE and its page
search           latents of an index
search_answer    what a search found, as rows and as lines
export           dashboards of other tools from an index
import           an index from dashboards of other tools
labels           labels of latents, as files
browse           a live page of an index
probe            labelled texts told apart by latents
diff             what differs between two corpora
diff_models      what differs between two models
report           training runs beside each other
convert          an SAE of one format into another
saes             published SAEs, and which open
steer            latents edited while a model writes
push             SAEs to the hub
pull             SAEs from the hub
study            the hallucination study
study_choices    multiple choice in the study
"""

from saelens_lite.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
