"""What model servers load of weightd: entry points of the package, which the servers find by themselves.

They are run in every process of a server, most of which never load a model. So they are apart from the package `weightd`, whose
import brings its native module, and import nothing until a model is loaded.
"""
