"""ControlNet Core: a node pack for ComfyUI, and a library and command without it.

In the editor this file is imported as a package and offers the node classes. Test runners may
import it as a bare module, where relative imports cannot work: hence the guard.
"""
