package status

import (
	"strings"

	"kthwd/appliance/text"
)

// remedy is a part of what to do after a finding: advice, or a command that can be typed
// as it stands.
type remedy struct {
	Text    string
	Command bool
}

// commands begins a command, and no sentence of advice. kthwd may have a path, as it was typed.
var commands = text.Pattern(`^(?:sudo )?(?:kthwd|\S*/kthwd|'[^']*/kthwd'|kubectl|systemctl|journalctl|etcdctl|openssl|chmod|chown|mv|cp|rm|mkdir|mount|df|du|ss|ulimit|timedatectl|hostnamectl) `)

// prose ends a command within a sentence.
var prose = text.Pattern(`(?:, (?:and|or|then|if|where|which|so|because|unless|until)|,? on (?:another|each|every|these|this|that) (?:controller|machine)s?)\b`)

// remediesOf splits a Finding's Do. A command stands between backquotes, or after the
// beginning, a colon or a semicolon, and begins with the name of a program.
func remediesOf(do string) (all []remedy) {
	add := func(text string, command bool) {
		text = strings.TrimSpace(text)
		if n := len(all); n > 0 && !command && !all[n-1].Command {
			all[n-1].Text += " " + text
		} else if text != "" {
			all = append(all, remedy{text, command})
		}
	}
	if quoted := strings.Split(do, "`"); len(quoted) > 1 && len(quoted)%2 == 1 {
		for i, text := range quoted {
			add(text, i%2 == 1)
		}
		return all
	}
	for len(do) > 0 {
		if commands().MatchString(do) {
			end := len(do)
			if at := strings.Index(do, "; "); at >= 0 {
				end = at
			}
			if at := prose().FindStringIndex(do[:end]); at != nil {
				end = at[0]
			}
			add(do[:end], true)
			do = strings.TrimLeft(do[end:], ",; ")
			continue
		}
		end := len(do)
		for _, mark := range []string{": ", "; "} {
			if at := strings.Index(do, mark); at >= 0 {
				end = min(end, at+len(mark))
			}
		}
		add(do[:end], false)
		do = do[end:]
	}
	return all
}
