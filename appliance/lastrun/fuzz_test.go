package lastrun

import (
	"os"
	"testing"

	"kthwd/appliance/text"
)

// FuzzRecord: whatever is in place of the record and of a trace, what is said of the run is one line that
// a terminal can show.
func FuzzRecord(f *testing.F) {
	for _, s := range [][2]string{
		{"", ""}, {"{}", "panic: oh\n"}, {`{"version":"v1","pid":1,"process":"7","boot":"b","memory":{"kills":{"/a":1},"own":{"group":"/a","inode":1}}}`, "\x1b[2J\u202e"},
		{`{"endedAt":"2026-01-02T03:04:05Z","error":"a\u001b[2J\nb\u009b\u202e"}`, ""}, {`{"service":{"result":"signal","code":"killed\n","status":"\u001bKILL"},"signal":"\u001b"}`, "SIGABRT: abort"}, {`{"memory":{"kills":{"../..":1}}}`, ""},
	} {
		f.Add([]byte(s[0]), []byte(s[1]))
	}
	files := In(f.TempDir())
	f.Fuzz(func(t *testing.T, record, trace []byte) {
		for path, data := range map[string][]byte{files.Record(): record, files.Crash(): trace} {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		end, err := files.Last()
		if err == nil && text.Line(end.Text) != end.Text {
			t.Errorf("said: %q", end.Text)
		}
	})
}
