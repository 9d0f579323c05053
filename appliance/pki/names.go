package pki

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"kthwd/appliance/durable"
)

// keptNames reads the names that a certificate had when it was last used: see RecordNames.
func (v *survey) keptNames(r row) []string {
	path := v.layout.Names()
	data, _, err := read(path)
	if errors.Is(err, fs.ErrNotExist) || r.names == nil || r.dir != "" {
		return nil
	}
	record := map[string][]string{}
	if err == nil {
		err = json.Unmarshal(data, &record)
	}
	if err != nil {
		v.misfit(&Misfit{File: path, Problem: "cannot be read, but says which names " + v.layout.Cert(r.name) + " had", Hint: "restore it; or move it away, and the new certificate has the names of the configuration alone"})
		return nil
	}
	return slices.DeleteFunc(record[r.name], func(name string) bool { return checkAddress(name) != nil })
}

// keepNames decides at which names besides those of the Spec the row's new certificate will
// be valid: those that the one before it had.
func (v *survey) keepNames(r row) {
	configured := r.names(v.spec)
	kept := slices.DeleteFunc(v.keptNames(r), func(name string) bool { return slices.Contains(configured, name) })
	if len(kept) == 0 {
		return
	}
	v.kept[r.name] = kept
	v.warn("%s: made anew, with the names of the one before it, too: %s; to drop them, move %s away first",
		v.layout.Cert(r.name), strings.Join(kept, ", "), v.layout.Names())
}

// RecordNames records the names in the certificates that have some, so that a certificate
// that is moved away and made anew keeps them. Call it after Ensure, at each start.
func RecordNames(l Layout) error {
	record := map[string][]string{}
	for _, r := range rowsOf(l) {
		if r.names == nil {
			continue
		}
		leaf, err := leafOf(l.Cert(r.name))
		if err != nil {
			return err
		}
		record[r.name] = sans(leaf)
	}
	data, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if there, err := os.ReadFile(l.Names()); err == nil && string(there) == string(data) {
		return nil
	}
	return durable.Write(l.Names(), data, modeSecret)
}
