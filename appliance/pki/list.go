package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// An Entry is one certificate, or a file in place of one.
type Entry struct {
	File                string   // full path; for a kubeconfig the entry is its client certificate
	Subject, Issuer     string   // common name and organizations, which Kubernetes uses as user and groups
	SANs, Uses          []string // Uses: ca, server, client, signing, any, or the OID of others
	NotBefore, NotAfter time.Time
	KeyType             string // such as "ECDSA P-256"
	Problem             string // why it cannot be used, apart from its dates; "" if it can
}

// List reads every certificate below l.Dir: kthwd's own in the order of the tutorial,
// then other *.pem and *.kubeconfig files, such as those of nodes, by name. It lists
// the CA in a kubeconfig only if that differs from ca.pem's.
//
// A file that cannot be read is an Entry with a Problem. List writes nothing and
// fails only if the directory cannot be read.
func List(l Layout) ([]Entry, error) {
	names, err := listed(l)
	if err != nil {
		return nil, err
	}
	issuers := map[string][]*x509.Certificate{}
	for _, r := range certificates {
		if data, _, err := read(l.Cert(r.name)); r.isCA() && err == nil {
			issuers[r.name], _, _ = parseCertificates(data)
		}
	}
	var entries []Entry
	for _, name := range names {
		path := l.path(name)
		if strings.HasSuffix(name, ".kubeconfig") {
			entries = append(entries, listKubeconfig(path, issuers[NameCA])...)
			continue
		}
		r := knownAs(strings.TrimSuffix(name, ".pem"))
		entries = append(entries, listCertificate(path, r, issuers[r.issuer]))
	}
	return entries, nil
}

// listed returns the names of the files to read, in order.
func listed(l Layout) ([]string, error) {
	all, err := os.ReadDir(l.Dir)
	if err != nil {
		return nil, err
	}
	var order, names []string
	for _, r := range certificates {
		order = append(order, r.name+".pem")
	}
	for _, k := range kubeconfigs {
		order = append(order, k.name+".kubeconfig")
	}
	for _, e := range all {
		pem := strings.HasSuffix(e.Name(), ".pem") && !strings.HasSuffix(e.Name(), "-key.pem")
		if (pem || strings.HasSuffix(e.Name(), ".kubeconfig")) && !slices.Contains(order, e.Name()) {
			names = append(names, e.Name())
		}
	}
	order = slices.DeleteFunc(order, func(name string) bool {
		_, elsewhere := l.Elsewhere[name]
		return !elsewhere && !slices.ContainsFunc(all, func(e fs.DirEntry) bool { return e.Name() == name })
	})
	return append(order, names...), nil
}

// knownAs returns the row of that name. An unknown name is treated as a leaf of ca.pem.
func knownAs(name string) row {
	for _, r := range certificates {
		if r.name == name {
			return r
		}
	}
	return row{name: name, issuer: NameCA}
}

func listCertificate(path string, r row, cas []*x509.Certificate) Entry {
	data, _, err := read(path)
	if err != nil {
		return Entry{File: path, Problem: problem(path, err)}
	}
	chain, public, err := parseCertificates(data)
	switch {
	case err != nil:
		return Entry{File: path, Problem: problem(path, err)}
	case len(chain) == 0:
		e := Entry{File: path, KeyType: keyType(public[0]), Uses: []string{"signing"}}
		if !r.publicOnly {
			e.Problem = "holds a public key and no certificate"
		}
		return e
	}
	e := describe(path, chain[0])
	keyFile := strings.TrimSuffix(path, ".pem") + "-key.pem"
	if data, _, err := read(keyFile); err == nil {
		key, err := parseKey(data)
		if err != nil || !slices.ContainsFunc(public, func(p crypto.PublicKey) bool { return fits(key, p) }) {
			e.Problem = "its key is not in " + filepath.Base(keyFile)
		}
	}
	if !r.isCA() && !signed(chain, cas) {
		e.Problem = "not signed by " + r.issuer + ".pem"
	}
	return e
}

func listKubeconfig(path string, cas []*x509.Certificate) []Entry {
	data, _, err := read(path)
	var a access
	if err == nil {
		a, err = parseKubeconfig(data, filepath.Dir(path))
	}
	if err != nil {
		return []Entry{{File: path, Problem: problem(path, err)}}
	}
	e := describe(path, a.client.chain[0])
	if !signed(a.client.chain, cas) {
		e.Problem = "not signed by ca.pem"
	} else if !fits(a.client.key, a.client.public[0]) {
		e.Problem = "the key in it belongs to another certificate"
	}
	entries := []Entry{e}
	for _, ca := range a.cas {
		if !slices.ContainsFunc(cas, ca.Equal) {
			e := describe(path, ca)
			e.Problem = "not ca.pem"
			entries = append(entries, e)
		}
	}
	return entries
}

// problem returns the text of err without the file, which the table names.
func problem(path string, err error) string {
	return strings.TrimPrefix(err.Error(), path+": ")
}

func describe(path string, c *x509.Certificate) Entry {
	return Entry{
		File: path, Subject: brief(c.Subject), Issuer: brief(c.Issuer),
		SANs: sans(c), Uses: uses(c), KeyType: keyType(c.PublicKey),
		NotBefore: c.NotBefore, NotAfter: c.NotAfter,
	}
}

func brief(n pkix.Name) string {
	return pkix.Name{CommonName: n.CommonName, Organization: n.Organization}.String()
}

func sans(c *x509.Certificate) []string {
	all := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	for _, u := range c.URIs {
		all = append(all, u.Redacted())
	}
	return append(all, c.EmailAddresses...)
}

// uses translates key usage and extended key usage to the words of Entry.Uses.
func uses(c *x509.Certificate) []string {
	if c.IsCA {
		return []string{"ca"}
	}
	var all []string
	for _, use := range c.ExtKeyUsage {
		all = append(all, useName(use))
	}
	for _, oid := range c.UnknownExtKeyUsage {
		all = append(all, oid.String())
	}
	switch {
	case len(all) > 0:
		return all
	case c.KeyUsage == x509.KeyUsageDigitalSignature:
		return []string{"signing"}
	}
	return []string{"any"}
}

func useName(use x509.ExtKeyUsage) string {
	switch use {
	case x509.ExtKeyUsageServerAuth:
		return "server"
	case x509.ExtKeyUsageClientAuth:
		return "client"
	case x509.ExtKeyUsageAny:
		return "any"
	}
	return use.OID().String()
}

// WriteTable prints entries as an aligned table, with the days that each has left at
// now. Long lists of SANs continue on further lines. The column PROBLEM appears only
// if there is a problem.
func WriteTable(w io.Writer, entries []Entry, now time.Time) error {
	header := []string{"FILE", "SUBJECT", "SANS", "USE", "EXPIRES"}
	troubled := slices.ContainsFunc(entries, func(e Entry) bool { return e.Problem != "" })
	if troubled {
		header = append(header, "PROBLEM")
	}
	var out bytes.Buffer
	t := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(header, "\t"))
	for _, e := range entries {
		names := wrap(e.SANs, 40)
		cells := []string{filepath.Base(e.File), or(e.Subject, "-"), names[0], or(strings.Join(e.Uses, ","), "-"), expires(e, now)}
		if troubled {
			cells = append(cells, e.Problem)
		}
		for i := range cells {
			cells[i] = printable(cells[i])
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
		for _, more := range names[1:] {
			fmt.Fprintf(t, "\t\t%s\t\t\n", printable(more))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for line := range bytes.Lines(out.Bytes()) { // tabwriter pads the last cell, too
		if _, err := fmt.Fprintf(w, "%s\n", bytes.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func expires(e Entry, now time.Time) string {
	if e.NotAfter.IsZero() {
		return "-"
	}
	date, left := e.NotAfter.UTC().Format(time.DateOnly), e.NotAfter.Sub(now)
	switch {
	case left < 0:
		return fmt.Sprintf("%s (expired)", date)
	case now.Before(e.NotBefore):
		return fmt.Sprintf("%s (valid from %s)", date, e.NotBefore.UTC().Format(time.DateOnly))
	}
	return fmt.Sprintf("%s (%d days)", date, int(left.Hours()/24))
}

// wrap joins names with commas into lines of at most width, if names are not longer.
// It returns at least one line.
func wrap(names []string, width int) []string {
	if len(names) == 0 {
		return []string{"-"}
	}
	lines := []string{names[0]}
	for _, name := range names[1:] {
		last := &lines[len(lines)-1]
		*last += ","
		if len(*last)+len(name) > width {
			lines = append(lines, name)
		} else {
			*last += name
		}
	}
	return lines
}

// printable keeps control characters in a foreign certificate from the terminal and
// the log.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
