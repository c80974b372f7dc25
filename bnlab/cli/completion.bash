_bnlab() {
    local IFS=$'\n'
    COMPREPLY=($(bnlab complete-line "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null))
    # No blank follows a word that is not whole.
    [[ ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace 2>/dev/null
}
complete -o bashdefault -o default -F _bnlab bnlab
