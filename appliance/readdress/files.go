package readdress

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"

	"kthwd/appliance/advice"
	"kthwd/appliance/durable"
	"kthwd/appliance/pki"
	"kthwd/appliance/text"
)

// certificate returns a pair that is valid at the new address, to speak with the others before
// kubernetes.pem is replaced: the one there, if it names the address, or a new one.
func (c *Change) certificate() (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(c.layout.Cert(pki.NameKubernetes), c.layout.Key(pki.NameKubernetes))
	if err == nil {
		var leaf *x509.Certificate
		if leaf, err = x509.ParseCertificate(pair.Certificate[0]); err == nil && leaf.VerifyHostname(c.o.Address) == nil {
			return pair, nil
		}
	}
	if err != nil {
		return pair, err
	}
	made, err := pki.IssueController(c.layout, []string{c.o.Address})
	if errors.Is(err, pki.ErrNoCAKey) {
		return pair, advice.With(fmt.Errorf("%s is not valid at %s, and the key of the CA, which could make one that is, is not here", c.layout.Cert(pki.NameKubernetes), c.o.Address),
			fmt.Sprintf("where the key is: kthwd pki controller %s %s --data-dir=DIR; copy kubernetes.pem and kubernetes-key.pem from there in place of those here, keep the old ones beside them, then run this again",
				text.ShellWord(c.self.Name), c.o.Address))
	}
	if err != nil {
		return pair, err
	}
	return tls.X509KeyPair(made.Files[pki.NameKubernetes+".pem"], made.Files[pki.NameKubernetes+"-key.pem"])
}

// renewCertificate has kubernetes.pem made anew, with all names of the one before it and the
// new address, unless it names the address already.
func (c *Change) renewCertificate() error {
	path := c.layout.Cert(pki.NameKubernetes)
	pair, err := tls.LoadX509KeyPair(path, c.layout.Key(pki.NameKubernetes))
	if err == nil {
		if leaf, err := x509.ParseCertificate(pair.Certificate[0]); err == nil && leaf.VerifyHostname(c.o.Address) == nil {
			return nil
		}
		if err := pki.RecordNames(c.layout); err != nil { // the new one keeps these
			return err
		}
	}
	if err := c.makeAnew(path, c.layout.Key(pki.NameKubernetes)); err != nil {
		return err
	}
	c.o.Say(fmt.Sprintf("made     %s for %s, with the names of the one before it, which is in old", path, c.o.Address))
	return nil
}

// makeAnew moves the files away and has them made anew. It puts them back if that fails.
func (c *Change) makeAnew(files ...string) (err error) {
	moved := map[string]string{}
	defer func() {
		for file, from := range moved {
			if err != nil && from != "" {
				err = errors.Join(err, os.Rename(from, file))
			}
		}
	}()
	for _, file := range files {
		if moved[file], err = aside(file); err != nil {
			return err
		}
	}
	_, err = pki.Ensure(c.layout, c.cfg.PKISpec())
	return err
}

// writeKubeconfigs replaces the server at the old address in this machine's kubeconfigs.
func (c *Change) writeKubeconfigs() error {
	server := func(host string) []byte {
		return []byte("server: https://" + net.JoinHostPort(host, strconv.Itoa(c.cfg.SecurePort)) + "\n")
	}
	var errs []error
	for _, name := range []string{pki.NameAdmin, pki.NameControllerManager, pki.NameScheduler} {
		path := c.layout.Kubeconfig(name)
		data, err := os.ReadFile(path)
		if err != nil {
			continue // a start makes it, or says why not
		}
		changed := bytes.ReplaceAll(data, server(c.old), server(c.o.Address))
		if bytes.Equal(changed, data) {
			continue
		}
		if err := durable.Write(path, changed, 0o600); err != nil {
			errs = append(errs, err)
			continue
		}
		c.o.Say("wrote    " + path)
	}
	return errors.Join(errs...)
}

// writeFile writes the address into the configuration file.
func (c *Change) writeFile() error {
	if c.o.File == "" {
		c.o.Say("note     there is no configuration file: start kthwd with --advertise-address=" + c.o.Address)
		return nil
	}
	info, err := os.Stat(c.o.File)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(c.o.File)
	if err != nil {
		return err
	}
	changed, rest := edit(data, c.self.Name, c.old, c.o.Address)
	if !bytes.Equal(changed, data) {
		if err := durable.Write(c.o.File, changed, info.Mode().Perm()); err != nil {
			return err
		}
		c.o.Say("wrote    " + c.o.File)
	}
	for _, line := range rest {
		c.o.Say(fmt.Sprintf("note     %s still names %s: %s", c.o.File, c.old, text.Line(line)))
	}
	return nil
}

// edit returns a configuration file with the new address where the old one was this
// controller's: as the value of a key about this machine, or in its entry of initial-cluster.
// Comments and everything else stay. rest lists the other lines with the old address.
func edit(file []byte, name, old, new string) (changed []byte, rest []string) {
	own := regexp.MustCompile(`^(advertise-address|bind-address|health-address|metrics-address)(\s*:\s*["']?\[?)` + regexp.QuoteMeta(old) + `(\]?(:\d+)?["']?\s*(#.*)?)$`)
	advertised := regexp.MustCompile(`^(advertise-address\s*:\s*)[^#]*?(\s*(#.*)?)$`)
	entry := regexp.MustCompile(`(^|[\s,\["'])` + regexp.QuoteMeta(name) + `=([0-9A-Fa-f.:]+)`)
	mention := regexp.MustCompile(`(^|[^0-9A-Fa-f.:])` + regexp.QuoteMeta(old) + `($|[^0-9A-Fa-f.])`)
	lines := strings.Split(strings.TrimSuffix(string(file), "\n"), "\n")
	found, inList := false, false
	for i, line := range lines {
		key, _, isKey := strings.Cut(line, ":")
		if isKey && key != "" && !strings.ContainsAny(key[:1], " \t-#") {
			inList = strings.TrimSpace(key) == "initial-cluster"
		}
		switch {
		case advertised.MatchString(line):
			found = true
			line = advertised.ReplaceAllString(line, "${1}"+quoted(new)+"${2}")
		case inList:
			line = entry.ReplaceAllString(line, "${1}"+name+"="+new)
		default:
			line = own.ReplaceAllString(line, "${1}${2}"+new+"${3}")
		}
		lines[i] = line
		if mention.MatchString(line) && !strings.HasPrefix(strings.TrimSpace(line), "#") {
			rest = append(rest, strings.TrimSpace(line))
		}
	}
	if !found {
		lines = append(lines, "advertise-address: "+quoted(new))
	}
	return []byte(strings.Join(lines, "\n") + "\n"), rest
}

// quoted is an address as a YAML string.
func quoted(address string) string {
	if strings.Contains(address, ":") {
		return strconv.Quote(address)
	}
	return address
}
