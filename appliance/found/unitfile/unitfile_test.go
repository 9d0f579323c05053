package unitfile

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// What systemd's own reader makes of such files: 30-systemd-environment-d-generator prints it.
func TestEnvironmentAsSystemd(t *testing.T) {
	const text = `ARGS=--a="b c" 'd e' --f=g\\ h "" "open
WORD="last one"
export EXPORTED=1
TWO="a" "b"
TAIL="a" b 'c'
MID=a"b c"d
SPACE=  x y  ` + `
NL="line1
line2"
CONT=a \
 b
  INDENT = v
; comment
# comment \
AFTER=1
SQ='a\b"c'
DQ="a\b\"c\\d"
ESC=a\nb\"c
Q="x"#y
no assignment
LAST=1`
	want := []string{
		`ARGS=--a="b c" 'd e' --f=g\ h "" "open`, "WORD=last one", "TWO=ab", "TAIL=ab 'c'", `MID=a"b c"d`, "SPACE=x y", "NL=line1\nline2", "CONT=a  b", "INDENT=v",
		`SQ=a\b"c`, `DQ=a\b"c\d`, `ESC=anb"c`, "Q=x#y", "LAST=1",
	}
	if got := Environment([]byte(text)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A value becomes as many words as it has, without their quotes.
func TestSplitValue(t *testing.T) {
	got := splitValue(` --a="b c" 'd e' --f=g\ h "" "open`)
	if want := []string{"--a=b c", "d e", "--f=g h", "", "open"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzEnvironment(f *testing.F) {
	f.Add([]byte("A=1\n# c\nexport B='x y' \\\n z\nC=\"a\\\"b\"\n"))
	f.Add([]byte("A=\"x\ny\" z \r\n;c\\\nB='\\"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, e := range Environment(data) {
			if name, _, ok := strings.Cut(e, "="); !ok || !isName(name) {
				t.Errorf("got %q, want NAME=VALUE", e)
			}
		}
	})
}

// Words that are quoted anew are the same words.
func FuzzWords(f *testing.F) {
	f.Add([]byte("/x/etcd --a='b c' \"d\\x20\" \\u00e9 \\7"))
	f.Fuzz(func(t *testing.T, data []byte) {
		words, err := Words(string(data))
		if err != nil {
			return
		}
		var quoted []string
		for _, w := range words {
			quoted = append(quoted, `"`+strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(w)+`"`)
		}
		if again, err := Words(strings.Join(quoted, " ")); err != nil || !reflect.DeepEqual(again, words) {
			t.Errorf("%q, quoted anew: got %q, %v, want %q", data, again, err, words)
		}
	})
}
