#compdef bnlab
_bnlab() {
    local -a rows whole open told_whole told_open
    local row word
    rows=("${(@f)$(bnlab complete-line "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    for row in $rows; do
        word=${row%%$'\t'*}
        # No blank follows a word that is not whole.
        if [[ $word == *[=./] ]]; then
            open+=("$word") told_open+=("${${row/$'\t'/  -- }[1,COLUMNS-1]}")
        else
            whole+=("$word") told_whole+=("${${row/$'\t'/  -- }[1,COLUMNS-1]}")
        fi
    done
    (( $#whole + $#open )) || { _files; return }
    (( $#open )) && compadd -l -S '' -d told_open -a open
    (( $#whole )) && compadd -l -d told_whole -a whole
    return 0
}
if [[ $funcstack[1] == _bnlab ]]; then _bnlab "$@"; else compdef _bnlab bnlab; fi
