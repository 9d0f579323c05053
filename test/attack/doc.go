// Package attack attacks the real binary: each test is an attack that once succeeded
// and now fails. As root, attacks over a network come from another network namespace, with an
// address of its own; without root they come from loopback, and the attacks of one user of the
// machine on another are skipped. reproductions (reviewed_test.go) has what the kthwd of the
// commit that was reviewed gave away to each, and make test-attacks-reviewed shows it.
//
// The findings of the review of security, and the test that repeats each, here or where a
// part can be attacked by itself:
//
//	C1   any certificate of the CA opens etcd              TestEtcdAnswersControllersOnly, TestSplitClosesEtcd, TestControllersNameIsNotSigned, TestControllerOfAnotherName
//	C2   what is in etcd yields ca-key.pem                 TestForgedJoinGivesNothing
//	H1   forged raft messages stop writes                  TestForgedRaftMessages, TestEtcdAnswersControllersOnly, TestLeaderThatIsNoMember
//	H2   anonymous requests push the audit log out         TestAnonymousPushesNoEvidenceOut, TestAnonymousRecordsAreElsewhere
//	H3   a lost administrator keeps all rights             TestClosedWhereTheGuideIsSilent, TestAdministrators, TestRevokedUser
//	M1   a join token works any number of times            TestTokenIsGoodOnce
//	M2   the token is in the command line                  TestTokenIsGoodOnce, TestScripts
//	M3   root follows links in the data directory          TestRootFollowsNoLinksOfTheDirectorysOwner, TestLinksInAnOwnDirectory, TestLinkInPlaceOfTheRunDirectory, TestLinkInPlaceOfAnAuditLog, TestEtcdDirectoryOfAnotherUser; of backups: TestLeftoversAreThisUsersDirectories
//	M4   others can write to the data directory            TestDirectoryOpenToOthers, TestDirectoryThatOthersExchange, TestDirectoryOfRoot
//	M5   the balancer shares the controller's user         TestUnitsKeepUsersApart, TestMemoryIsClosed, TestDebian
//	M6   a core dump has the keys                          TestUnitsKeepUsersApart, TestMemoryIsClosed, TestDebian
//	M7   profiles on ports 10257 and 10259                 TestClosedWhereTheGuideIsSilent; their addresses are the guide's, and loopback with the profile cis: TestProfileCIS
//	M8   tokens of any length                              TestClosedWhereTheGuideIsSilent
//	M9   client_ca_file: ca.pem lets every node in         TestMetricsClientsAreNamed, TestWebClients
//	L1   a foreign page reads the status                   TestForeignPageReadsNothing, TestForeignHostOnLoopback
//	L2   escapes and forged answers reach the operator     TestForeignReportDrivesNoTerminal, TestStrangerIsNotBelieved, TestWriteTableEscapes, TestHostileLabels, TestHostilePage
//	L3   the join port has no limits                       TestJoinPortHasLimits
//	L4   anybody takes the balancer's upgrade socket       TestUnitsKeepUsersApart, TestUpgradeOtherProcess, TestDebian
//	L5   a node has the API server's name                  TestControllersNameIsNotSigned, TestIssueNodeRefuses
//	L6   keys on controllers that nobody uses              TestControllersLackUnusedKeys, TestCluster
//	L7   anonymous clients learn versions                  TestAnonymousSeesProbesOnly
//	L8   a Service takes foreign addresses                 TestClosedWhereTheGuideIsSilent
//	L9   alpha APIs are served                             none: the guide's own flag; without it, with the profile cis: TestProfileCIS
//	L10  weak cipher suites                                TestClosedWhereTheGuideIsSilent
//	L11  only Secrets are encrypted                        none: the guide's own configuration; docs/security.md says it
//	L12  secrets in flags and files that all can read      TestClosedWhereTheGuideIsSilent, TestCleanFlag, TestJoinPortHasLimits, TestDebian
//	L13  scanners find no command lines                    TestCommandLinesAreShown, TestProfileCIS, TestScripts
package attack
