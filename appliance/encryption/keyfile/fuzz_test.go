package keyfile

import (
	"strings"
	"testing"
)

// FuzzFile: a configuration that the user has written is refused without a word of its keys, or gives
// a file that can be read for each stage of a rotation.
func FuzzFile(f *testing.F) {
	const secret = "s3cretsecret"
	one := "{secretbox: {keys: [{name: key1, secret: " + secret1 + "}]}}"
	for _, s := range []string{
		"", written, strings.ReplaceAll(written, secret1, secret), "resources: " + secret, "resources:\n- {resources: [secrets], providers: [" + one + "]}\n",
		"resources:\n- {resources: [secrets], providers: [{secretbox: {keys: [{name: new, secret: " + secret1 + "}]}}]}\n", "resources: [{resources: ['*.*'], providers: [{identity: {}}]}]", "a: &a [*a]",
		"resources:\n- {resources: secrets, providers: [{kms: {name: k, apiVersion: v2, endpoint: 'unix:///x'}}, identity, []]}\n", "kind: " + secret + "\nresources: {" + secret + ": [" + secret,
	} {
		f.Add([]byte(s))
	}
	p := Provider{Kind: "secretbox", Name: "new"}
	key, err := NewKey(p)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		clean := func(err error) {
			t.Helper()
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("the error tells a secret: %v", err)
			}
		}
		read, err := Parse(data)
		clean(err)
		if err != nil {
			return
		}
		clean(read.Rotatable())
		read.NewProvider("secretbox", nil)
		for _, form := range []Form{FormRead, FormWrite, FormNew, FormWithout} {
			out, err := In(data, form, p, key)
			clean(err)
			if err != nil {
				continue
			}
			if _, err := Parse(out); err != nil && form != FormWithout { // which may be a list without a provider
				t.Errorf("form %d of a file that can be read cannot be: %v\n%s", form, err, out)
			}
		}
	})
}
